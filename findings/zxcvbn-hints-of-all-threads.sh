#!/usr/bin/env bash
# zxcvbn: the words that a caller gives for one password (user_inputs) are kept in the module, for all threads.
#
# `zxcvbn(password, user_inputs=[...])` looks like a function of its arguments. It writes the words into the module's own
# RANKED_DICTIONARIES and reads them from there while it computes, which in a server another thread's call replaces
# meanwhile: a password is then judged by another person's words. So calls take turns in one process.
#
# Seen with zxcvbn 4.5.0, Python 3.11:
#   before any call: no words
#   after a call with a word: {'wolfeschlegelstein': 1}
#   its score by itself: 3 · with the word: 0 · with the word, while another thread judges: 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'zxcvbn==4.5.0'
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading

from zxcvbn import matching, zxcvbn

WORD = "wolfeschlegelstein"
print("before any call:", matching.RANKED_DICTIONARIES.get("user_inputs", "no words"))
alone = zxcvbn(WORD)["score"]
known = zxcvbn(WORD, user_inputs=[WORD])["score"]
print("after a call with a word:", matching.RANKED_DICTIONARIES["user_inputs"])

# Another thread's call, at a moment that a server would meet by chance: the first matcher is about to begin.
first_matcher = matching.dictionary_match


def interrupted(*args, **kwargs):
    matching.dictionary_match = first_matcher
    other = threading.Thread(target=zxcvbn, args=("another password",), kwargs={"user_inputs": ["other"]})
    other.start()
    other.join()
    return first_matcher(*args, **kwargs)


matching.dictionary_match = interrupted
meanwhile = zxcvbn(WORD, user_inputs=[WORD])["score"]
print(f"its score by itself: {alone} · with the word: {known} · with the word, while another thread judges: {meanwhile}")
sys.exit(None if known < alone == meanwhile else "It works now: the behaviour has changed.")
PYTHON
