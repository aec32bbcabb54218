"""Published data of people as records: the formats of Aya, OpenAssistant, Okapi, Alpaca and ShareGPT."""
