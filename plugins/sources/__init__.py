"""Model sources: a folder, the bundled demo model, the Hugging Face hub; asked in the order of their rank."""

from core.hookspecs import hookimpl


@hookimpl
def register_model_sources(register) -> None:  # type: ignore[no-untyped-def]
    register("folder", "plugins.sources.folder:FolderSource")
    register("demo", "plugins.sources.demo:DemoSource")
    register("hub", "plugins.sources.hub:HubSource")
