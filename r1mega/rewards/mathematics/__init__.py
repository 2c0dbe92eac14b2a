"""Is an answer in mathematics equal to the truth? Strict grammar, exact values, limits before anything is parsed.

`answer` finds the text, `guards` bounds it, `notation` cuts it into tokens, `expression` reads terms, `reading` reads
what is made of terms (sets, intervals, equations, units), `value` computes them, `compare` decides, `solving` and
`foreign` ask sympy and math-verify about what remains.
"""
