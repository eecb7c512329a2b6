"""LiteLLM, as OpenAI's client and as Anthropic's. Run by test_clients.py with the server's address."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no call to the outside

import litellm  # noqa: E402

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
options = {"api_key": "x", "temperature": 0, "timeout": 60, "num_retries": 0, "max_tokens": 80}
messages = [{"role": "user", "content": "What is block_size?"}]
ask = [{"role": "user", "content": "What is the weather in Oslo?"}]
texts = []
for model, base in (("openai/demo", f"{sys.argv[1]}/v1"), ("anthropic/demo", sys.argv[1])):
    way = {"model": model, "api_base": base, **options}
    whole = litellm.completion(messages=messages, **way).choices[0].message.content
    chunks = litellm.completion(messages=messages, stream=True, **way)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole, model
    (call,) = litellm.completion(messages=ask, tools=[TOOL], **way).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}, call
    texts.append(whole)
assert texts[0] == texts[1] and "block" in texts[0], texts
way = {"model": "openai/demo", "api_base": f"{sys.argv[1]}/v1", "api_key": "x"}
vectors = [
    d["embedding"] for d in litellm.embedding(input=["Hello!", "block_size"], encoding_format="float", **way).data
]
assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0]) - 1) < 1e-5
way = {"model": "hosted_vllm/demo", "api_base": f"{sys.argv[1]}/v1", "api_key": "x"}
ranking = litellm.rerank(query="block_size", documents=["Hello!", "block_size"], top_n=1, **way)
assert ranking.results[0]["index"] == 1 and abs(ranking.results[0]["relevance_score"] - 1) < 1e-4
print("passed")
