"""The broker: a pure core that decides, a journal that remembers, a ROUTER server that speaks.

Reading order: records, journal, book, core and its parts (sessions, credit, queries), then server.
"""
