"""Data as the engines take it: read from files and checked, or generated from a seed.

Places and visits
    :mod:`~shoal.data.places` reads tables, GeoJSON, GeoNames dumps and
    OpenStreetMap extracts into one checked table; :mod:`~shoal.data.checkins`
    reads who was where, when, and who knows whom;
    :mod:`~shoal.data.words` splits a text into words.
Graphs
    :mod:`~shoal.data.graphs` reads edge lists, :mod:`~shoal.data.graphgen` makes
    random graphs of the usual models.
Event streams
    :mod:`~shoal.data.flights` and :mod:`~shoal.data.shop` give what devices
    would record.
Generated
    :mod:`~shoal.data.placegen`, :mod:`~shoal.data.visitgen` and
    :mod:`~shoal.data.friendgen`: the same seed gives the same rows to the last
    bit.

What cannot be read is refused with its row, or left out and counted where the
caller asks for that. The modules are imported one by one: reading a file of one
kind needs no library of another.

Examples
--------
>>> from shoal.data.places import load_places_sample
>>> len(load_places_sample())
4000
"""
