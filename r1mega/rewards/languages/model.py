"""py3langid's own model, which comes with it; it takes a second to load, so workers import this before they judge."""

from py3langid.langid import MODEL_FILE, LanguageIdentifier

MODEL = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
"""Its probabilities are tempered by the text's length."""
