"""`python -m bench.scale`: what a number of concurrent streams takes, and how its readers come through a fail-over, a deployment
and the loss of a gateway, in simulation (docs/explanation/scale.md).

units (measured costs, prices) ──► plan (cores, memory, network, money)
                               └─► simulation (SimPy: readers at gateways and shards) ◄── compared with real runs by check
"""
