"""Tools for chat templates that know none: what to put before a template so that it shows tools, calls and their results.

llama.cpp asks the template alone how a model calls tools, and where it knows none it overlooks them. Most models made of a
Llama-like base have such a template. The words are those of Hermes 2 and Qwen 2.5, which llama.cpp finds calls by.
"""

from __future__ import annotations

_TURNS = r"""
{%- if tools -%}
{%- set told = namespace(turns=[], text='', results='') -%}
{%- if SYSTEM and messages and messages[0].role == 'system' -%}
{%- set told.text = messages[0].content + '\n\n' -%}
{%- endif -%}
{%- set told.text = told.text + 'You can call these functions:\n<tools>' -%}
{%- for tool in tools -%}
{%- set told.text = told.text + '\n' + (tool | tojson) -%}
{%- endfor -%}
{%- set told.text = told.text + '\n</tools>\nTo call one, answer with a JSON object in tags:\n<tool_call>\n' -%}
{%- set told.text = told.text + '{"name": "...", "arguments": {...}}\n</tool_call>' -%}
{%- if SYSTEM -%}
{%- set told.turns = [{'role': 'system', 'content': told.text}] -%}
{%- set told.text = '' -%}
{%- else -%}
{%- set told.text = told.text + '\n\n' -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if told.results -%}
{%- set told.results = told.results + '\n' -%}
{%- endif -%}
{%- set told.results = told.results + '<tool_response>\n' + (message.content | string) + '\n</tool_response>' -%}
{%- if loop.last or messages[loop.index].role != 'tool' -%}
{%- set told.turns = told.turns + [{'role': 'user', 'content': told.results}] -%}
{%- set told.results = '' -%}
{%- endif -%}
{%- elif message.role == 'assistant' and message.tool_calls -%}
{%- set told.text = message.content or '' -%}
{%- for call in message.tool_calls -%}
{%- set given = call.function.arguments if call.function.arguments is string else (call.function.arguments | tojson) -%}
{%- if told.text -%}
{%- set told.text = told.text + '\n' -%}
{%- endif -%}
{%- set told.text = told.text + '<tool_call>\n{"name": ' + (call.function.name | tojson) -%}
{%- set told.text = told.text + ', "arguments": ' + given + '}\n</tool_call>' -%}
{%- endfor -%}
{%- set told.turns = told.turns + [{'role': 'assistant', 'content': told.text}] -%}
{%- set told.text = '' -%}
{%- elif message.role == 'user' and told.text -%}
{%- set told.turns = told.turns + [{'role': 'user', 'content': told.text + message.content}] -%}
{%- set told.text = '' -%}
{%- elif message.role != 'system' or not SYSTEM -%}
{%- set told.turns = told.turns + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = told.turns -%}
{%- endif -%}
"""


def with_tools(template: str) -> str:
    """A chat template that shows tools as well; itself if it does so already. Without tools it renders as before.

    The tools are described in the system message, or before the first user's message where the template has none.
    """
    if "tools" in template:
        return template
    system = "true" if "system" in template else "false"
    return "".join(line.replace("SYSTEM", system) for line in _TURNS.strip().split("\n")) + template
