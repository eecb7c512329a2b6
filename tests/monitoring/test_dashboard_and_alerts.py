"""The dashboard and the alerts against a real Prometheus, which scrapes a real server under a little load."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "monitoring" / "prometheus-alerts.yml"
DASHBOARD = json.loads((ROOT / "monitoring" / "grafana-dashboard.json").read_text())
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine: apt-get install prometheus")

QUERIES = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def backplane() -> Iterator[str]:
    """`engine serve` with the demo model, at work."""
    command = [sys.executable, "-m", "server", "--port", "0", "--num-blocks", "512", "--num-threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        url = next((m[1] for line in process.stdout if (m := re.search(r"^serving .* on (\S+)", line))), None)
        assert url, "the server did not start"
        over = threading.Event()

        def work() -> None:
            """A stream, an answer at once and one that is cut off, until the module's end."""
            body = {"messages": [{"role": "user", "content": "What is block_size? " * 4}], "max_tokens": 12}
            with httpx.Client(timeout=30) as client:
                while not over.wait(0.1):
                    client.post(url + "/v1/chat/completions", json=body)
                    with client.stream("POST", url + "/v1/chat/completions", json={**body, "stream": True}) as stream:
                        for _ in stream.iter_bytes():
                            pass
                    body["max_tokens"] = 4 + body["max_tokens"] % 9

        worker = threading.Thread(target=work)
        worker.start()
        yield url
        over.set()
        worker.join(30)
        process.terminate()
        process.stdout.read()


@pytest.fixture(scope="module")
def prometheus(backplane: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Prometheus that has scraped the server some times."""
    if PROMETHEUS is None:
        pytest.skip("no prometheus on this machine: apt-get install prometheus")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = {
        "global": {"scrape_interval": "250ms", "evaluation_interval": "250ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": "backplane", "static_configs": [{"targets": [backplane.removeprefix("http://")]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10) as client:
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.3)
                try:
                    scrapes = answer(client, "count_over_time(backplane:engine_up[1m])")
                except httpx.HTTPError:
                    continue
                if scrapes and float(scrapes[0]["value"][1]) >= 10:
                    break
            else:
                process.kill()
                raise AssertionError(f"Prometheus scraped nothing: {process.stdout.read()}")  # type: ignore[union-attr]
            yield client
        process.terminate()


def answer(client: httpx.Client, query: str) -> list[dict]:
    response = client.get("/query", params={"query": query})
    body = response.json()
    assert body["status"] == "success", f"{query}: {body.get('error')}"
    assert not body.get("warnings"), f"{query}: {body['warnings']}"
    return list(body["data"]["result"])


def filled_in(expression: str) -> str:
    """What Grafana makes of it with everything selected."""
    filled = expression.replace("$__rate_interval", "20s").replace("$model_name", ".*").replace("$instance", ".*")
    assert "$" not in filled, f"a variable that the dashboard does not have: {filled}"
    return filled


@pytest.mark.parametrize(("name", "expression"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_of_the_dashboard_has_data(prometheus, name, expression):
    found = answer(prometheus, filled_in(expression))
    assert found, f"nothing for {expression}"
    numbers = [float(series["value"][1]) for series in found]
    assert any(math.isfinite(n) for n in numbers), f"no number for {expression}: {numbers}"


def test_what_the_dashboard_says_is_so(prometheus, backplane):
    by_title = {panel["title"]: panel for panel in DASHBOARD["panels"] if "targets" in panel}

    def value(title: str, target: int = 0) -> float:
        return float(answer(prometheus, filled_in(by_title[title]["targets"][target]["expr"]))[0]["value"][1])

    assert value("Engines up") == 1
    assert value("Output tokens/s") > 0
    assert 0 < value("Prefix cache hits") <= 1, "the same prompt came again and again"
    low, middle, high = (value("Time to first token", i) for i in range(3))
    assert 0 < low <= middle <= high < 30
    assert 0 < value("Prompt tokens") < 200


def test_the_dashboard_is_whole():
    titles = [panel["title"] for panel in DASHBOARD["panels"] if "targets" in panel]
    assert len(titles) == len(set(titles)) + 1, "KV cache in use is a figure and a curve"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) and len(QUERIES) > 30
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    names = {v["name"] for v in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "model_name", "instance"}


def test_every_alert_is_evaluated_without_error_and_none_fires(prometheus):
    deadline = time.monotonic() + 10
    while True:
        groups = prometheus.get("/rules").json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules) or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    written = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in written]
    for rule in rules:
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
        assert rule["state"] != "firing", f"{rule['name']} fires at a server that is well"
    for rule in written:
        answer(prometheus, rule["expr"])


def test_every_metric_that_is_named_is_exported(backplane):
    exported = set(re.findall(r"^(backplane:\w+)", httpx.get(backplane + "/metrics").text, re.M))
    texts = ALERTS.read_text() + "".join(expression for _, expression in QUERIES)
    named = set(re.findall(r"backplane:\w+", texts))
    assert len(named) > 15 and named <= exported, named - exported


@with_promtool
def test_promtool_accepts_the_rules():
    done = subprocess.run([PROMTOOL, "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


LABELS = '{instance="a:8000", model_name="demo"}'
# alert -> (series that make it fire, when to look). `0+3x40` is 0, 3, 6 ... at every half minute.
FIRES = {
    "BackplaneEngineDown": ({f"backplane:engine_up{LABELS}": "1 0 0 0 0"}, "2m"),
    "BackplaneGone": ({f"backplane:engine_up{LABELS}": "1 1 _x20"}, "5m"),
    "BackplaneStalled": (
        {f"backplane:num_requests_running{LABELS}": "4x20", f"backplane:engine_steps_total{LABELS}": "900x20"},
        "4m",
    ),
    "BackplaneErrors": (
        {
            'backplane:request_success_total{instance="a:8000", model_name="demo", finished_reason="stop"}': "0+60x40",
            'backplane:request_success_total{instance="a:8000", model_name="demo", finished_reason="error"}': "0+3x40",
        },
        "15m",
    ),
    "BackplaneQueueGrows": (
        {f"backplane:num_requests_running{LABELS}": "8x60", f"backplane:num_requests_waiting{LABELS}": "10+5x60"},
        "25m",
    ),
    "BackplaneFirstTokenSlow": (
        {
            f'backplane:time_to_first_token_seconds_bucket{{le="{le}", {LABELS[1:]}': f"0+{n}x60"
            for le, n in (("5.0", 80), ("10.0", 100), ("+Inf", 100))
        },
        "20m",
    ),
    "BackplaneTokensSlow": (
        {
            f'backplane:inter_token_latency_seconds_bucket{{le="{le}", {LABELS[1:]}': f"0+{n}x60"
            for le, n in (("0.2", 80), ("0.5", 100), ("+Inf", 100))
        },
        "20m",
    ),
    "BackplaneCacheFull": (
        {f"backplane:kv_cache_usage_perc{LABELS}": "0.99x60", f"backplane:num_requests_waiting{LABELS}": "3x60"},
        "15m",
    ),
    "BackplanePreempts": ({f"backplane:num_preemptions_total{LABELS}": "0+30x60"}, "20m"),
}
CALM = {
    f"backplane:engine_up{LABELS}": "1x60",
    f"backplane:num_requests_running{LABELS}": "8x60",
    f"backplane:num_requests_waiting{LABELS}": "2x60",
    f"backplane:engine_steps_total{LABELS}": "0+300x60",
    f"backplane:kv_cache_usage_perc{LABELS}": "0.6x60",
    f"backplane:num_preemptions_total{LABELS}": "7x60",
    'backplane:request_success_total{instance="a:8000", model_name="demo", finished_reason="stop"}': "0+60x60",
    'backplane:request_success_total{instance="a:8000", model_name="demo", finished_reason="error"}': "0x60",
}


@with_promtool
def test_every_alert_fires_when_it_should_and_not_when_all_is_well(tmp_path):
    """promtool plays series to the rules; `count(ALERTS{...})` is asked, so that the texts need no copy here."""
    written = [r["alert"] for g in yaml.safe_load(ALERTS.read_text())["groups"] for r in g["rules"]]
    assert set(FIRES) == set(written)

    def case(series: dict[str, str], alert: str, when: str, samples: list[dict]) -> dict:
        query = f'count by (alertname) (ALERTS{{alertstate="firing", alertname="{alert}"}})'
        return {
            "interval": "30s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [{"expr": query, "eval_time": when, "exp_samples": samples}],
        }

    cases = []
    for alert, (series, when) in FIRES.items():
        cases.append(case(series, alert, when, [{"labels": f'{{alertname="{alert}"}}', "value": 1}]))
        cases.append(case(CALM, alert, "25m", []))
    suite = {"rule_files": [str(ALERTS)], "evaluation_interval": "30s", "tests": cases}
    (tmp_path / "suite.yml").write_text(yaml.safe_dump(suite))
    done = subprocess.run([PROMTOOL, "test", "rules", str(tmp_path / "suite.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
