"""The wire between zq's processes: messages, their encoding, the job and its states, limits. Depends on nothing.

The specification is SPEC.md beside this file.
"""
