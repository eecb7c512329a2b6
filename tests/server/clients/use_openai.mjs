// openai's JavaScript client: whole, streamed, tools, structured outputs, embeddings, responses. Run by test_clients.py with
// the server's address, in a folder where openai and zod are installed.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "x", maxRetries: 0, timeout: 60_000 });
const common = { model: "demo", temperature: 0, max_tokens: 100 };
const question = [{ role: "user", content: "What is the weather in Oslo?" }];
const person = [{ role: "user", content: "Mila is 44 years old and lives in Porto. Extract name, age and city as JSON." }];
const Person = z.object({ name: z.string(), age: z.number().int(), city: z.string() });
const mila = { name: "Mila", age: 44, city: "Porto" };
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

// models
const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["demo"]);

// whole and streamed say the same
const hello = { ...common, messages: [{ role: "user", content: "Hello!" }] };
const whole = await client.chat.completions.create(hello);
assert.equal(whole.choices[0].finish_reason, "stop");
assert.ok(whole.choices[0].message.content.length > 0 && whole.usage.completion_tokens > 0);
const stream = await client.chat.completions.create({ ...hello, stream: true, stream_options: { include_usage: true } });
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

// a stream that is left
const left = await client.chat.completions.create({ ...hello, stream: true, max_tokens: 2000, ignore_eos: true });
for await (const _ of left) break;

// the streaming helper
const helper = client.chat.completions.stream(hello);
const deltas = [];
helper.on("content", (delta) => deltas.push(delta));
assert.equal(await helper.finalContent(), text);
assert.equal(deltas.join(""), text);

// tools, whole and streamed
const call = (await client.chat.completions.create({ ...common, messages: question, tools: [weather] })).choices[0];
assert.equal(call.finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(call.message.tool_calls[0].function.arguments), { city: "Oslo" });
const streamed = await client.chat.completions.stream({ ...common, messages: question, tools: [weather] }).finalMessage();
assert.equal(streamed.tool_calls[0].function.name, "get_weather");
assert.deepEqual(JSON.parse(streamed.tool_calls[0].function.arguments), { city: "Oslo" });
let asked = null;
const runner = client.chat.completions.runTools({
  ...common,
  messages: question,
  tools: [{ ...weather, function: { ...weather.function, parse: JSON.parse, function: (given) => {
    asked = given;
    return '{"temperature": 12, "sky": "sunny"}';
  } } }],
});
assert.equal(await runner.finalContent(), "The temperature is 12 and the sky is sunny.");
assert.deepEqual(asked, { city: "Oslo" });

// structured outputs
const format = zodResponseFormat(Person, "person");
const parsed = await client.chat.completions.parse({ ...common, messages: person, response_format: format });
assert.deepEqual(parsed.choices[0].message.parsed, mila);
const parameters = {
  type: "object",
  properties: { city: { enum: ["Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const strict = { ...weather, function: { ...weather.function, parameters, strict: true } };
const held = await client.chat.completions.parse({ ...common, messages: question, tools: [strict] });
assert.deepEqual(held.choices[0].message.tool_calls[0].function.parsed_arguments, { city: "Rome" });

// responses
const response = await client.responses.parse({
  model: "demo",
  temperature: 0,
  input: person[0].content,
  text: { format: zodTextFormat(Person, "person") },
});
assert.deepEqual(response.output_parsed, mila);
const types = [];
const events = client.responses.stream({ model: "demo", temperature: 0, input: "Hello!" });
events.on("event", (event) => types.push(event.type));
assert.equal((await events.finalResponse()).output_text, text);
assert.ok(types.includes("response.output_text.delta") && types.at(-1) === "response.completed");

// completions and embeddings
const completion = await client.completions.create({ model: "demo", prompt: ["a", "b"], max_tokens: 4, temperature: 0 });
assert.equal(completion.choices.length, 2);
const vectors = await client.embeddings.create({ model: "demo", input: ["hello", "hello"] });
const [one, other] = vectors.data.map((d) => d.embedding); // of steps of other sizes, whose sums may round otherwise
assert.ok(one.length === other.length && one.every((value, i) => Math.abs(value - other[i]) < 1e-5));
assert.ok(Math.abs(Math.hypot(...vectors.data[0].embedding) - 1) < 1e-4);

// errors have names
await assert.rejects(client.chat.completions.create({ ...hello, temperature: -1 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  return true;
});
await assert.rejects(client.models.retrieve("gpt-5"), OpenAI.NotFoundError);
console.log("passed");
