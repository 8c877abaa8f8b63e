"""What two tokenizers are compared on."""
# ruff: noqa: RUF001  the look-alike characters are what is tested

CONVERSATION = [
    {"role": "user", "content": "What is the square root of 24?"},
    {"role": "assistant", "content": "About 4.9.\n\nMore exactly: 2√6."},
    {"role": "user", "content": " Tell me a story about the universe 🌌"},
]

PASSAGE = (
    "The lighthouse keeper climbed the stairs every evening, when the sun was low over the bay. He carried a small can of oil "
    "and a cloth, and he counted the steps as he went, although he had known their number for thirty years. At the top he "
    "cleaned the glass, filled the lamp and waited. Out at sea the fishing boats turned towards the harbour one after another, "
    "and he knew each of them by its light. When the last one had passed the rocks, he wrote the time and the weather into a "
    "large book. Then he sat down by the window and read until midnight.\n\n"
    "To find the area of a circle, multiply the square of its radius by pi. If the radius is 3 metres, the area is about 28.3 "
    "square metres. The circumference of the same circle is twice the radius times pi, which is about 18.8 metres."
)
"""What two models are compared on: plain English, more than 128 tokens of any vocabulary."""

TEXTS = (
    "Hello, world!", " leading space", "trailing space ", "two  spaces", "   three before", "tabs\tand\t\ttabs",
    "a\nb\n\nc\n\n\nd", "\n", " \n ", "line one\r\nline two", "    indented = 1", "\tif x:\n\t\treturn  2024",
    "x  1   2    3", "1234567890", "3.14159e-10", "1,000,000 and 12:30", "It's we'll I'd they've CAN'T don'T",
    "ALL CAPS and MixedCase camelCase snake_case", "e-mail@example.org", "https://example.org/a?b=c&d=%20#e",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # comment\n", "for (int i = 0; i < n; ++i) { a[i] += b; }",
    "SELECT * FROM t WHERE a <> 'b' -- c", "{\"key\": [1, 2.5, null, true]}", "<p class=\"x\">text</p>",
    "$\\frac{1}{2} \\sum_{i=0}^n x_i$", "| a | b |\n|---|---|\n", "# Title\n\n- item\n  - nested\n",
    "!!! ??? ... --- ***", "“quoted” ‘single’ — dash – en… ", "naïve café Übergröße", "Zażółć gęślą jaźń",
    "Съешь ещё этих мягких французских булок", "Ξεσκεπάζω την ψυχοφθόρα", "שלום עולם", "مرحبا بالعالم",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界！今天天气很好。", "こんにちは世界、カタカナ", "안녕하세요 세계", "🙂",
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽", "a🙂b 🙂 c", "½ ² ³ Ⅷ ٣ ४", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋",
    "\u00a0no-break\u00a0space", "\u3000ideographic\u3000space", "zero\u200bwidth\u200djoiner", "\ufeffmark",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "supercalifragilisticexpialidocious",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "What is 7*8? It is 56.", "  \n  mixed \t white \n\t space  ", "A.B.C. U.S.A. Dr. No", "x=1;y=2;z=x+y",
    "C:\\Users\\name", "~/.config/`id`",
)  # fmt: skip
"""Spaces, numbers, code, many scripts, emoji; all in Unicode's composed form (NFC), since llama.cpp does not normalise."""
