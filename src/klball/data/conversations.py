"""Lists of chat turns: what is accepted, and ShareGPT's `from`/`value` as TRL's `role`/`content`."""

import json
from collections.abc import Sequence
from typing import Any

from klball.data.texts import found, refusal

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    **{"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"},
    **{"bot": "assistant", "model": "assistant", "system": "system", "tool": "tool", "observation": "tool"},
}

Turn = dict[str, Any]


def turns_of(value: Any, row: int, column: str) -> list[Turn]:
    """The turns of one row, contents as text: a list of text parts becomes their concatenation.

    Raises ValueError, with row, column and turn, for whatever a chat template could not render or would
    render as something else than text.
    """
    if not isinstance(value, list | tuple):
        hint = "; a JSON string must be a list in the file" if isinstance(value, str) else ""
        raise refusal(row, column, f'{found(value)}, not a list of {{"role", "content"}}{hint}')
    if not value:
        raise refusal(row, column, "the list of turns is empty")
    return [_turn(turn, row, f"{column}, turn {k}") for k, turn in enumerate(value, start=1)]


def _turn(turn: Any, row: int, place: str) -> Turn:
    if not isinstance(turn, dict):
        raise refusal(row, place, f'{found(turn)}, not an object with "role" and "content"')
    if turn.get("from") is not None and turn.get("role") is None:
        turn = _from_sharegpt(turn, row, place)
    role = turn.get("role")
    if role not in ROLES:
        near = SHAREGPT.get(role) if isinstance(role, str) else None
        what = (
            "no role"
            if role is None
            else f"unknown role {role!r}" + (f" (did you mean {near!r}?)" if near else "")
        )
        raise refusal(row, place, f"{what}; roles are {', '.join(ROLES)}")
    calls = turn.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) for c in calls)):
        raise refusal(row, place, f"tool_calls is {found(calls)}, not a list of objects")
    content = turn.get("content")
    if isinstance(content, str) or (content is None and calls and role == "assistant"):
        return turn
    if content is None:
        raise refusal(row, place, f"the {role} has no content (null or absent): write its text")
    if isinstance(content, list):
        return {**turn, "content": "".join(_part(part, row, place) for part in content)}
    raise refusal(row, place, f"content is {found(content)}, not text")


def _from_sharegpt(turn: Turn, row: int, place: str) -> Turn:
    role = SHAREGPT.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise refusal(
            row, place, f"unknown speaker {turn['from']!r}; ShareGPT's are {', '.join(SHAREGPT)}; "
            "tool calls are written as `messages` with tool_calls"
        )  # fmt: skip
    rest = {name: value for name, value in turn.items() if name not in ("from", "value", "role", "content")}
    return {"role": role, "content": turn.get("value", turn.get("content")), **rest}


def _part(part: Any, row: int, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else None
    what = f"a part of type {kind!r}" if kind not in (None, "text") else found(part)
    raise refusal(row, place, f'content has {what}: only {{"type": "text", "text": …}} parts are supported')


def chat_of(row: dict[str, Any]) -> list[Turn]:
    """The turns of a row that is a conversation in one of TRL's formats."""
    return row.get("messages") or [*row["prompt"], *row["completion"]]


def last_answer(turns: Sequence[Turn]) -> int | None:
    """The place of the last assistant turn, None if nobody answers."""
    return max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)


def require_assistant(turns: Sequence[Turn], row: int, column: str) -> None:
    """Raise ValueError if nobody answers."""
    if last_answer(turns) is None:
        raise refusal(row, column, "no assistant turn, so there is nothing to learn or to score")


def with_system(turns: list[Turn], system: str) -> list[Turn]:
    """The turns after a system turn, unless there is none to add or they begin with their own."""
    own = bool(turns) and turns[0]["role"] == "system"
    return turns if own or not system else [{"role": "system", "content": system}, *turns]


def earlier_turns(value: Any, row: int) -> list[Turn]:
    """LLaMA-Factory's `history`, [[user, assistant], …], as turns."""
    pairs = [] if value is None else value
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise refusal(row, "history", "not a list of [user, assistant] pairs of text")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def tools_of(value: Any, row: int) -> Any:
    """A row's `tools`: a list of objects, or that as a JSON string (read by TRL), or nothing."""
    tools = value
    if isinstance(value, str):
        try:
            tools = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise refusal(row, "tools", f"text that is not JSON ({error})") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise refusal(row, "tools", f"{found(tools)}, not a list of tool descriptions")
    return tools


def template_kwargs_of(value: Any, row: int) -> dict[str, Any]:
    """A row's `chat_template_kwargs`; what Arrow filled up with null was not given."""
    if value is not None and not isinstance(value, dict):
        raise refusal(row, "chat_template_kwargs", f"{found(value)}, not an object")
    return {name: setting for name, setting in (value or {}).items() if setting is not None}


def text_of_turn(turn: Turn) -> str:
    """What a turn says, tool calls as JSON, to be shown to people."""
    calls = turn.get("tool_calls")
    parts = [turn.get("content"), json.dumps(calls, ensure_ascii=False, default=str) if calls else None]
    return "\n".join(str(part) for part in parts if part)
