"""Why a score: reasons in words, and what would change a decision."""
