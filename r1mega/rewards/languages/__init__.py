"""Which language are the words of a text in? What is no word (`neutral`), words and clauses (`words`), the languages
that there are (`table`), and a clause's language where several share its script (`identify`)."""
