import httpx


def test_health_and_models(server):
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert [m["id"] for m in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["tiny", "also-tiny"]
    r = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "the engine", "max_tokens": 5})
    print(r.text, server.output)
    assert r.status_code == 200
