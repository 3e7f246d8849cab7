"""What a person looks at; the only home of matplotlib."""
