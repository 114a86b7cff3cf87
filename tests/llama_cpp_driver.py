"""What llama.cpp makes of GGUF files, in a process of its own: it ends the process where it fails.

python tests/llama_cpp_driver.py < JOBS: [{"path": FILE, "prompts": [...], "chats": [...]}, ...]. A
prompt is a list of ids or a text, a chat a list of messages. Prints for each file the
log-probabilities [V] of the next token after each, prompts first.
"""

import json
import sys

import xllamacpp


def main():
    print(json.dumps([answers(**job) for job in json.load(sys.stdin)]))


def answers(path, prompts=(), chats=()):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.warmup, params.verbosity = 256, False, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Its flash attention keeps queries in 16 bits.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    say = {"max_tokens": 1, "temperature": 0, "logprobs": 40, "cache_prompt": False}
    found = [server.handle_completions(say | {"prompt": prompt}) for prompt in prompts]
    say |= {"logprobs": True, "top_logprobs": 40}
    found += [server.handle_chat_completions(say | {"messages": chat}) for chat in chats]
    return [_log_probabilities(each) for each in found]


def _log_probabilities(answer):
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [each["logprob"] for each in sorted(found, key=lambda each: each["id"])]


if __name__ == "__main__":
    main()
