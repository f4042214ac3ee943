"""Try the function of a site:  python check_data.py data.py SITE SITES

Prints what it returns, and what a run has to say of it; a mistake ends with exit code 2.
"""

import json
import sys

from syncnorm.data.partitions.sites import load_site
from syncnorm.errors import UserError


def main(file: str, site: str, sites: str) -> int:
    """Load a site's data, and say what they are."""
    try:
        x, y, _, test_y = load_site(file, int(site), int(sites))
    except UserError as mistake:
        print(f"site {site}: {mistake}", file=sys.stderr)
        return 2
    said = {"name": "sites", "options": {"shape": list(x.shape[1:]), "classes": int(max(y.max(), test_y.max())) + 1}}
    print(
        f"site {site}: {len(y)} training and {len(test_y)} test samples; a run's data, if no site has more classes:"
    )
    print(f'    "data": {json.dumps(said)}')
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
