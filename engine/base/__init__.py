"""What every room may use: errors, languages, records, JSON, seeds.

It imports no torch, and is the only room of the engine that datagen imports.
"""
