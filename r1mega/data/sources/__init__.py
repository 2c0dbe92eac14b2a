"""Where questions come from: a file a source, its settings included. `source` says what one is, `registry` is the
table of them. Settings reach pydantic alone; the library that makes or reads questions is imported where it does."""
