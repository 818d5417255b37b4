"""Marks from papers, to stand beside the measured ones: other models, and sizes in other units."""

PUBLISHED = {
    "slicegpt, OPT-125M, WikiText-2": {
        "source": "arXiv 2401.15024, without fine-tuning, calibrated on WikiText-2",
        "cut": "share of the channels",
        "perplexity": {"0%": 27.6, "20%": 34.3, "25%": 37.7, "30%": 44.0},
    },
    "MLP neurons by weight, Llama-3.2-1B, WikiText-2": {
        "cut": "share of the neurons",
        "word_perplexity": {"0%": 11.6, "20%": 25.1, "50%": 117},
    },
}
