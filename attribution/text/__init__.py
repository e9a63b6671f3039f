"""From a request's words to token ids and back: encoding, chat, languages, generation, contrasts."""
