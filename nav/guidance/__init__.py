"""From poses, registration and plan to the numbers a person acts on, and the gate that blanks them: pure."""
