"""instructor, in three ways of asking for a model. Run by test_clients.py with the server's address."""

import sys

import instructor
import openai
import pydantic


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int
    city: str


client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="x", max_retries=0, timeout=60)
for mode in ("JSON_SCHEMA", "TOOLS", "JSON"):
    person = instructor.from_openai(client, mode=instructor.Mode[mode]).chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Mila is 44 years old and lives in Porto. Extract name, age and city."}],
        response_model=Person,
        temperature=0,
        max_retries=0,
        max_tokens=100,
    )
    # instructor words the prompt itself, so what stands in the fields is the model's affair
    assert isinstance(person, Person), (mode, person)
print("passed")
