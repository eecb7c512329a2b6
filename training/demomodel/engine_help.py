"""Questions and answers about Backplane itself: its command, its options, its plugins, its words."""

from __future__ import annotations

from random import Random

from demomodel.sample import Check, Sample, assistant, user
from demomodel.smalltalk import casual

# what is asked about -> the answer; the first name is the one that questions use most
TOPICS: list[tuple[list[str], str]] = [
    (
        ["Backplane", "this engine", "the Backplane engine", "the engine"],
        "Backplane is an open source engine for LLM inference and serving, written in Python, in which everything that has "
        "a name is a plugin.",
    ),
    (
        ["engine serve", "the serve command", "`engine serve`"],
        "`engine serve MODEL` starts a server with an OpenAI-compatible API. Without a model it serves the bundled demo "
        "model.",
    ),
    (
        ["engine bench", "the bench command", "`engine bench`"],
        "`engine bench` measures the engine: `engine bench latency`, `engine bench throughput`, or `engine bench serve` for a "
        "running server.",
    ),
    (["engine chat", "the chat command", "`engine chat`"], "`engine chat` talks to a model in the terminal."),
    (
        ["engine doctor", "the doctor command", "`engine doctor`"],
        "`engine doctor` says what this machine has and what the engine would choose.",
    ),
    (
        ["engine plugins", "the plugins command", "`engine plugins list`"],
        "`engine plugins list` shows every plugin that is installed and what it registers.",
    ),
    (
        ["plugins", "a plugin", "the plugin system"],
        "A plugin is a Python package that registers objects such as models, attention backends, quantization methods or "
        "parsers by name, through the entry point group backplane.plugins.",
    ),
    (
        ["block_size", "--block-size", "the block size"],
        "block_size is the number of tokens in a block of the KV cache. It must be a power of two; 16 is a good choice.",
    ),
    (
        ["max_num_seqs", "--max-num-seqs"],
        "max_num_seqs is the largest number of requests that share a step. The default is 256.",
    ),
    (
        ["max_num_batched_tokens", "--max-num-batched-tokens"],
        "max_num_batched_tokens is the largest number of tokens in a step, over all requests. The default is 2048 on a CPU "
        "and 8192 on a GPU.",
    ),
    (
        ["max_model_len", "--max-model-len"],
        "max_model_len is the largest number of tokens of one request, prompt and output together.",
    ),
    (
        ["gpu_memory_utilization", "--gpu-memory-utilization"],
        "gpu_memory_utilization is the share of the GPU's memory that the engine uses for weights, activations and the KV "
        "cache. The default is 0.9.",
    ),
    (
        ["prefix caching", "the prefix cache", "enable_prefix_caching"],
        "Prefix caching keeps the KV blocks of finished prompts and reuses them for requests that begin alike, so that the "
        "shared part is not computed again.",
    ),
    (
        ["the KV cache", "KV cache", "kv cache", "a KV cache"],
        "The KV cache holds the keys and values of earlier tokens, so that each step only computes the new ones. It is "
        "divided into blocks.",
    ),
    (
        ["a block", "KV blocks", "blocks", "a KV block"],
        "A block holds the keys and values of a fixed number of tokens. Requests get blocks as they grow and share them "
        "when their prefixes are equal.",
    ),
    (
        ["attention backends", "an attention backend", "attention_backend", "--attention-backend"],
        "An attention backend computes attention over the paged KV cache. It is chosen by name with attention_backend; "
        "auto takes the best one for the device.",
    ),
    (
        ["quantization", "--quantization", "quantized models"],
        "Quantization stores weights in fewer bits, so that a model needs less memory. The method is a plugin; auto reads it "
        "from the model's config.json.",
    ),
    (
        ["speculative decoding", "speculation", "a draft model", "the draft model"],
        "In speculative decoding a small draft model proposes several tokens and the large model checks them in one step, "
        "which gives the same text faster.",
    ),
    (
        ["chunked prefill", "enable_chunked_prefill"],
        "Chunked prefill cuts long prompts into pieces that share a step with the decodes of other requests, so that nobody "
        "waits for a long prompt.",
    ),
    (
        ["continuous batching", "batching"],
        "Continuous batching lets requests join and leave the batch at every step, so that the device is never idle while "
        "there is work.",
    ),
    (
        ["prefill", "the prefill phase"],
        "Prefill is the computation of the prompt's tokens, many at once, before the first new token is made.",
    ),
    (
        ["decode", "decoding", "the decode phase"],
        "Decode is the phase in which a request makes one new token in each step.",
    ),
    (
        ["preemption", "preempted requests"],
        "When the KV cache is full, the scheduler preempts a request: it frees its blocks and computes them again later.",
    ),
    (
        ["the scheduler", "scheduling"],
        "The scheduler decides in every step which requests run and how many tokens of each are computed.",
    ),
    (
        ["scheduling_policy", "--scheduling-policy", "the scheduling policy"],
        "scheduling_policy says who is admitted first: fcfs goes by arrival, priority goes by the priority of the request.",
    ),
    (
        ["guided decoding", "structured output", "JSON mode", "guided_backend"],
        "Guided decoding allows only tokens that fit a JSON schema, a regular expression or a grammar, so that the output "
        "is always valid.",
    ),
    (
        ["tool calling", "tool calls", "function calling", "tool_call_parser"],
        "A model that knows tools writes a call as JSON; the tool call parser turns it into the tool_calls field of the "
        "answer.",
    ),
    (
        ["a reasoning parser", "reasoning_parser", "reasoning"],
        "A reasoning parser separates the thoughts of a model from its answer and puts them into a field of their own.",
    ),
    (
        ["streaming", "stream"],
        "With stream set to true the server sends each piece of text as soon as it is made, as server-sent events.",
    ),
    (
        ["dtype", "--dtype"],
        "dtype is the precision of weights and activations. auto takes the checkpoint's own on a GPU and float32 on a CPU.",
    ),
    (["kv_cache_dtype", "--kv-cache-dtype"], "kv_cache_dtype is the precision of stored keys and values."),
    (
        ["load_format", "--load-format"],
        "load_format says where weights come from. dummy fills them with random numbers, which is enough for measuring.",
    ),
    (
        ["tensor parallelism", "tensor_parallel_size"],
        "Tensor parallelism splits the weights of each layer over several GPUs, which work on the same step together.",
    ),
    (
        ["CUDA graphs", "enforce_eager", "--enforce-eager"],
        "CUDA graphs replay the kernels of a step with a single launch. enforce_eager switches them off.",
    ),
    (
        ["deterministic", "--deterministic"],
        "With deterministic a request gets the same tokens whatever else is in its batch. It is slower.",
    ),
    (["a GPU", "the device", "--device"], "No GPU is needed. The same engine runs on a CPU, only slower."),
    (["no prefix caching", "--no-enable-prefix-caching"], "Start the engine with `--no-enable-prefix-caching`."),
    (
        ["the seed", "seed", "--seed"],
        "seed makes sampling repeatable: the same request with the same seed gives the same text.",
    ),
    (
        ["temperature", "the temperature"],
        "temperature sets how random the choice of the next token is. 0 always takes the most likely token.",
    ),
    (
        ["top_p", "top-p"],
        "top_p keeps only the most likely tokens that together reach this probability, and samples from them.",
    ),
    (["top_k", "top-k"], "top_k keeps only the k most likely tokens, and samples from them."),
    (["max_tokens", "the max_tokens field"], "max_tokens is the largest number of tokens that a request may generate."),
    (
        ["stop strings", "stop"],
        "Generation ends when one of the stop strings appears; the string itself is not returned.",
    ),
    (
        ["logprobs", "top_logprobs"],
        "logprobs returns the log probability of each token, and of the most likely others.",
    ),
    (
        ["LoRA", "LoRA adapters", "a LoRA adapter"],
        "A LoRA adapter is a small set of weights that changes a model. Several adapters can be served over one base model.",
    ),
    (
        ["the demo model", "demo", "the bundled model"],
        "The demo model is me: a small Llama that is part of the package, so that the engine can be tried without a "
        "download.",
    ),
    (["the port", "port", "--port"], "The server listens on port 8000; `--port` changes it."),
    (["the host", "host", "--host"], "The server listens on 127.0.0.1; `--host 0.0.0.0` opens it to every interface."),
    (
        ["the API key", "api_key", "--api-key", "BACKPLANE_API_KEY"],
        "With `--api-key KEY` clients must send the key as a bearer token.",
    ),
    (
        ["/metrics", "metrics", "the metrics page"],
        "The server shows its counters at /metrics, in the format of Prometheus.",
    ),
    (
        ["/health", "health checks", "the health check"],
        "/health says 200 while the engine makes progress and 503 when it has stalled.",
    ),
    (["the license", "the licence", "your license"], "Backplane is open source under the Apache License 2.0."),
    (
        ["max_queued_requests", "--max-queued-requests"],
        "max_queued_requests is the largest number of requests that wait; one more is refused with status 429.",
    ),
    (
        ["num_blocks", "--num-blocks"],
        "num_blocks sets the number of KV blocks in the pool, in place of a size in bytes.",
    ),
    (
        ["served_model_name", "--served-model-name"],
        "served_model_name gives names that clients may use for the model, in place of its own.",
    ),
    (
        ["chat_template", "--chat-template", "the chat template"],
        "chat_template is a Jinja template that turns messages into a prompt. Unset, the model's own is used.",
    ),
]

_WHAT = [
    "What is {}?",
    "What does {} mean?",
    "Explain {}.",
    "Can you explain {}?",
    "Tell me about {}.",
    "Describe {}.",
    "How does {} work?",
    "What do you know about {}?",
    "What does {} do?",
    "Please explain {}.",
    "{}?",
    "What is {} for?",
    "What's {}?",
    "I do not understand {}.",
    "Help me with {}.",
    "Give me a short note on {}.",
    "What is the meaning of {}?",
    "Why is there {}?",
    "When do I need {}?",
    "How do I use {}?",
]

# questions in their own words -> the topic that answers
_HOW: list[tuple[list[str], str]] = [
    (
        [
            "How do I start a server?",
            "How do I start the server?",
            "How can I serve a model?",
            "How do I run a model?",
            "Which command starts the server?",
            "How do I start the engine?",
            "How do I serve a model?",
        ],
        "engine serve",
    ),
    (
        [
            "How do I measure the speed?",
            "How fast is the engine?",
            "How do I benchmark the engine?",
            "Which command measures the speed?",
            "How can I run a benchmark?",
        ],
        "engine bench",
    ),
    (
        [
            "Which plugins are installed?",
            "How do I list plugins?",
            "How do I see my plugins?",
            "How can I show the plugins?",
        ],
        "engine plugins",
    ),
    (
        [
            "How do I write a plugin?",
            "How can I add a model?",
            "How do I extend the engine?",
            "Can I add my own backend?",
        ],
        "plugins",
    ),
    (
        ["How do I limit the memory?", "The GPU is out of memory, what can I do?", "How much GPU memory is used?"],
        "gpu_memory_utilization",
    ),
    (["How do I change the port?", "Which port is used?", "On which port does the server listen?"], "the port"),
    (["How do I protect the server?", "How do I set a password?", "How do I set an API key?"], "the API key"),
    (
        ["How many requests run at once?", "How do I limit the number of requests?", "How many requests share a step?"],
        "max_num_seqs",
    ),
    (["How do I get valid JSON?", "How do I force JSON output?", "Can I get JSON for sure?"], "guided decoding"),
    (["How do I make the engine faster with a draft?", "What is a draft model for?"], "speculative decoding"),
    (
        ["Are shared prompts computed again?", "How do I reuse a long prompt?", "Is a common prefix computed twice?"],
        "prefix caching",
    ),
    (["What happens when the cache is full?", "What if the KV cache runs out?"], "preemption"),
    (["Where are the metrics?", "Is there a Prometheus page?", "How do I monitor the server?"], "/metrics"),
    (
        ["Is Backplane free?", "Is it open source?", "Which license does it have?", "What is the license?"],
        "the license",
    ),
    (["How do I choose the attention backend?", "Which attention backend is used?"], "attention backends"),
    (["How do I use a quantized model?", "How do I save memory for weights?"], "quantization"),
    (["How do I check my installation?", "Is my machine supported?", "What does my machine have?"], "engine doctor"),
    (["How do I chat in the terminal?", "Can I talk to the model in a terminal?"], "engine chat"),
    (["Do I need a GPU?", "Does it run on a CPU?", "Can I use a laptop?", "Is a GPU needed?"], "a GPU"),
    (["How do I switch off prefix caching?", "How do I disable the prefix cache?"], "no prefix caching"),
    (["How large is a block?", "Which block size should I use?", "What block size is good?"], "block_size"),
]

_ANSWERS = {names[0]: answer for names, answer in TOPICS}


def make(rng: Random) -> Sample:
    if rng.random() < 0.3:
        questions, topic = rng.choice(_HOW)
        question, answer = rng.choice(questions), _ANSWERS[topic]
    else:
        names, answer = rng.choice(TOPICS)
        question = rng.choice(_WHAT).format(names[0] if rng.random() < 0.4 else rng.choice(names))
        question = question[0].upper() + question[1:]
        roll = rng.random()
        if roll < 0.15:
            question = question.rstrip("?.") + rng.choice([" in Backplane?", " in this engine?", " in the engine?"])
    return Sample("engine", [user(casual(rng, question)), assistant(answer)], Check("one_of", [answer]))
