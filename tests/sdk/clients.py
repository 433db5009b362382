"""Every client for Python that docs/CLIENTS.md names, against `fusebox demo` whose first provider answers 500: each operation has
to get its answer from the second one.

    pip install uv
    for it in 'openai[realtime]' anthropic langchain-openai langchain-anthropic llama-index-llms-openai-like \\
        litellm instructor 'pydantic-ai-slim[openai,anthropic]' llm; do uv pip install "$it"; done
    cargo build --release --features proxy
    python3 tests/sdk/clients.py target/release/fusebox
"""

import asyncio
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

PORT = 18485
BASE = f"http://127.0.0.1:{PORT}"
TEXT = "The circuit is closed again."
ASK = [{"role": "user", "content": "Hello"}]
os.environ.update(OPENAI_API_KEY="token", ANTHROPIC_API_KEY="token", LITELLM_LOCAL_MODEL_COST_MAP="True", DO_NOT_TRACK="1")

TRIES = []


def tried(package, operation):
    def add(function):
        TRIES.append((package, operation, function))
        return function

    return add


def openai_client():
    from openai import OpenAI

    return OpenAI(base_url=f"{BASE}/v1", max_retries=0)


@tried("openai", "chat.completions.create")
def _():
    return openai_client().chat.completions.create(model="demo", messages=ASK).choices[0].message.content


@tried("openai", "chat.completions.create, stream")
def _():
    stream = openai_client().chat.completions.create(model="demo", messages=ASK, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@tried("openai", "responses.create")
def _():
    return openai_client().responses.create(model="demo", input="Hello").output_text


@tried("openai", "responses.stream")
def _():
    with openai_client().responses.stream(model="demo", input="Hello") as stream:
        stream.until_done()
        return stream.get_final_response().output_text


@tried("openai", "embeddings.create")
def _():
    vector = openai_client().embeddings.create(model="demo", input="Hello", encoding_format="float").data[0].embedding
    return TEXT if vector == [0.25, -0.5] else vector


@tried("openai", "audio.transcriptions.create")
def _():
    return openai_client().audio.transcriptions.create(model="demo", file=("a.wav", b"RIFF" * 1000)).text


@tried("openai", "models.list")
def _():
    return TEXT if [model.id for model in openai_client().models.list()] == ["demo"] else "no list"


def anthropic_client():
    from anthropic import Anthropic

    return Anthropic(base_url=BASE, max_retries=0)


@tried("anthropic", "messages.create")
def _():
    return anthropic_client().messages.create(model="demo", max_tokens=9, messages=ASK).content[0].text


@tried("anthropic", "messages.stream")
def _():
    with anthropic_client().messages.stream(model="demo", max_tokens=9, messages=ASK) as stream:
        return stream.get_final_text()


@tried("anthropic", "messages.count_tokens")
def _():
    count = anthropic_client().messages.count_tokens(model="demo", messages=ASK).input_tokens
    return TEXT if count == 1 else count


@tried("langchain-openai", "ChatOpenAI.invoke, .stream")
def _():
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="demo", base_url=f"{BASE}/v1", max_retries=0)
    assert chat.invoke("Hello").content == TEXT
    return "".join(chunk.content for chunk in chat.stream("Hello"))


@tried("langchain-openai", "ChatOpenAI(use_responses_api=True).invoke")
def _():
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="demo", base_url=f"{BASE}/v1", max_retries=0, use_responses_api=True)
    return chat.invoke("Hello").text


@tried("langchain-anthropic", "ChatAnthropic.invoke, .stream")
def _():
    from langchain_anthropic import ChatAnthropic

    chat = ChatAnthropic(model="demo", base_url=BASE, max_retries=0)
    assert chat.invoke("Hello").content == TEXT
    return "".join(chunk.text for chunk in chat.stream("Hello"))


@tried("llama-index-llms-openai-like", "OpenAILike.chat, .stream_chat")
def _():
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model="demo", api_base=f"{BASE}/v1", api_key="token", is_chat_model=True, max_retries=0)
    ask = [ChatMessage(role="user", content="Hello")]
    assert llm.chat(ask).message.content == TEXT
    return "".join(chunk.delta or "" for chunk in llm.stream_chat(ask))


@tried("litellm", "completion, stream")
def _():
    import litellm

    more = {"model": "openai/demo", "api_base": f"{BASE}/v1", "messages": ASK, "max_retries": 0}
    assert litellm.completion(**more).choices[0].message.content == TEXT
    return "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**more, stream=True))


@tried("litellm", "completion of anthropic/...")
def _():
    import litellm

    answer = litellm.completion(model="anthropic/demo", api_base=BASE, messages=ASK, max_tokens=9, max_retries=0)
    return answer.choices[0].message.content


@tried("instructor", "from_openai, without a response model")
def _():
    import instructor

    client = instructor.from_openai(openai_client(), mode=instructor.Mode.JSON)
    # The demo's text is no JSON.
    return client.chat.completions.create(model="demo", messages=ASK, response_model=None).choices[0].message.content


@tried("pydantic-ai-slim", "Agent.run_sync with OpenAIChatModel")
def _():
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=f"{BASE}/v1", api_key="token"))
    return Agent(model).run_sync("Hello").output


@tried("pydantic-ai-slim", "Agent.run_sync with AnthropicModel")
def _():
    from anthropic import AsyncAnthropic
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(base_url=BASE, api_key="token", max_retries=0)
    model = AnthropicModel("demo", provider=AnthropicProvider(anthropic_client=client))
    return Agent(model).run_sync("Hello").output


@tried("llm", "llm -m fusebox")
def _():
    with tempfile.TemporaryDirectory() as home:
        with open(f"{home}/extra-openai-models.yaml", "w") as models:
            models.write(f"- model_id: fusebox\n  model_name: demo\n  api_base: {BASE}/v1\n")
        environment = os.environ | {"LLM_USER_PATH": home}
        program = os.path.join(os.path.dirname(sys.executable), "llm")
        ran = subprocess.run([program, "-m", "fusebox", "Hello"], capture_output=True, env=environment, timeout=60)
        return ran.stdout.decode().strip() or ran.stderr.decode()


def main():
    demo = subprocess.Popen([sys.argv[1], "demo", "--port", str(PORT)], stdout=subprocess.DEVNULL)
    failed = 0
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT + 1}/primary/500", data=b"", timeout=5).read()
                break
            except OSError:
                time.sleep(0.05)
        for package, operation, function in TRIES:
            version = importlib.metadata.version(package)
            try:
                answer = function()
                result = "ok" if answer == TEXT else f"FAILED: {answer!r}"
            except Exception as error:  # any client's own
                result = f"FAILED: {type(error).__name__}: {error}"[:300]
            failed += result != "ok"
            print(f"| {package} {version} | {operation} | {result} |", flush=True)
    finally:
        demo.terminate()
        demo.wait()
    sys.exit(failed != 0)


main()
