"""States from vLLM servers: HTTP, files, checks, retries, in the order in which they are asked.

The only part of the project that speaks HTTP. vLLM itself is never imported.
"""
