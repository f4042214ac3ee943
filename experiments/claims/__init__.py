"""The claims about batch norm that syncnorm started from, each with a measurement, an interval and a verdict.

python -m experiments.claims          # measures what results/claims lacks, and writes its page
python -m experiments.claims --quick  # a small form, in out/claims-quick: about a minute
"""
