"""LangChain's ChatOpenAI over chat completions and over responses, and its embeddings. Run by test_clients.py with the server's address."""

import sys

import pydantic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int
    city: str


def get_weather(city: str) -> str:
    """Get the weather of a city"""


options = dict(base_url=f"{sys.argv[1]}/v1", api_key="x", model="demo", temperature=0, max_retries=0, timeout=60)
for use_responses_api in (False, True):
    chat = ChatOpenAI(**options, use_responses_api=use_responses_api)
    whole = chat.invoke("What is block_size?")
    assert "block" in str(whole.text) and whole.usage_metadata["output_tokens"] > 3, whole
    assert "".join(str(chunk.text) for chunk in chat.stream("What is block_size?")) == str(whole.text)

    with_tools = chat.bind_tools([get_weather])
    (call,) = with_tools.invoke("What is the weather in Oslo?").tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"}), call
    gathered = None
    for chunk in with_tools.stream("What is the weather in Oslo?"):
        gathered = chunk if gathered is None else gathered + chunk
    assert gathered.tool_calls[0]["args"] == {"city": "Oslo"}, gathered

    asked = "Mila is 44 years old and lives in Porto. Extract name, age and city as JSON."
    parsed = chat.with_structured_output(Person, method="json_schema").invoke(asked)
    assert parsed == Person(name="Mila", age=44, city="Porto"), parsed

# the texts themselves are sent; by default LangChain cuts them into OpenAI's own tokens, which are no token ids here
embeddings = OpenAIEmbeddings(
    base_url=f"{sys.argv[1]}/v1", api_key="x", model="demo", max_retries=0, check_embedding_ctx_length=False
)
documents = embeddings.embed_documents(["What is block_size?", "Hello!"])
assert len(documents) == 2 and abs(sum(x * x for x in documents[0]) - 1) < 1e-5
query = embeddings.embed_query("Hello!")
assert max(abs(a - b) for a, b in zip(query, documents[1], strict=True)) < 1e-5
print("passed")
