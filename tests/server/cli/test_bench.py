"""`engine bench`: what it measures is what the server did, and a server that is not there is named."""

from __future__ import annotations

import json
import statistics
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from server.cli.bench import bench, summary


def run(*args: object):
    return CliRunner().invoke(bench, [str(a) for a in args])


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000])
def test_summary(count):
    values = [float(v) for v in reversed(range(1, count + 1))]
    got = summary(values)
    assert got["mean"] == statistics.fmean(values) and got["median"] == statistics.median(values)
    assert got["max"] == count
    # the smallest value that at least 99 of 100 do not exceed
    assert got["p99"] == min(v for v in values if sum(w <= v for w in values) * 100 >= 99 * count)


def test_serve_reports_every_request_and_draws_a_picture(server, tmp_path):
    made = tmp_path / "figures.json"
    picture = tmp_path / "figures.svg"
    sizes = ("--num-prompts", 6, "--input-len", 5, "--output-len", 9, "--max-concurrency", 3, "--request-rate", 200)
    done = run("serve", "--url", f"{server.url}/v1", "--prompts", "words", *sizes, "--json", made, "--plot", picture)
    assert done.exit_code == 0, done.output
    figures = json.loads(made.read_text())
    assert (figures["requests"], figures["failed"], figures["output_tokens"]) == (6, 0, 54)
    assert 0 < figures["ttft_ms"]["median"] <= figures["e2e_ms"]["max"]
    assert figures["tpot_ms"]["mean"] * 8 <= figures["e2e_ms"]["max"]
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "output_tokens_per_s"):
        assert name in done.output
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_serve_takes_the_spellings_of_vllm(server, tmp_path):
    made = tmp_path / "figures.json"
    lens = ("--random-input-len", 4, "--random-output-len", 3)
    done = run(
        "serve", "--base-url", server.url, *lens, "--num-prompts", 2, "--request-rate", "inf", "--prompts", "words",
        "--seed", 3, "--result-filename", made,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(made.read_text())["output_tokens"] == 6


def test_serve_counts_what_fails(server):
    # token ids beyond the tiny model's vocabulary
    done = run("serve", "--url", f"{server.url}/v1", "--num-prompts", 2, "--input-len", 50, "--output-len", 2)
    assert done.exit_code == 1 and "400" in done.output


def test_a_server_that_is_not_there_is_named():
    done = run("serve", "--url", "http://127.0.0.1:9/v1", "--num-prompts", 1)
    assert done.exit_code == 1 and "http://127.0.0.1:9/v1/models" in done.output and "--url" in done.output


def seconds_of(figures):
    return figures["latency_s"]["median"] if "latency_s" in figures else figures["seconds"]


@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_offline(kind, tmp_path):
    made = tmp_path / "figures.json"
    count = ("--batch-size", 2, "--runs", 2) if kind == "latency" else ("--num-prompts", 3)
    done = run(kind, "--model", "demo", "--input-len", 8, "--output-len", 5, *count, "--json", made)
    assert done.exit_code == 0, done.output
    figures = json.loads(made.read_text())
    assert figures["floor_share"] == pytest.approx(figures["floor_s"] / seconds_of(figures))
    assert figures["copy_gb_per_s"] > 0 and figures["matmul_tflop_per_s"] > 0
    if kind == "latency":
        assert figures["latency_s"]["median"] > 0 and figures["batch"] == 2
    else:
        assert figures["output_tokens_per_s"] * figures["seconds"] == pytest.approx(15)
