"""Llama 3.1 to 3.3: the whole output is {"name": ..., "parameters": {...}}, several are parted by ";".

There is no marker (<|python_tag|> comes at times), so JSON that names no known function is content.
"""

from __future__ import annotations

import json

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import Format, Tools, functions, tag, triggered


class Llama3JsonParser(MarkerParser):
    def run(self) -> Read:
        self.hold()
        yield from self.spaces()
        yield from self.literal("<|python_tag|>")
        yield from self.spaces()
        while (yield from self.peek()) == "{":
            if not (yield from self.call_object(known_only=True)):
                return
            self.hold()
            yield from self.spaces()
            yield from self.literal(";")
            yield from self.spaces()
        if self.num_calls and (yield from self.peek()) == "":
            self.drop()

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        begins = [(f'{{"name": {json.dumps(n, ensure_ascii=False)}, "parameters": ', a) for n, a in functions(tools)]
        return triggered(['{"name":'], [tag(begin, arguments, "}") for begin, arguments in begins])
