"""``stdetr bench suite=op``: the operators against their reference and their peers; needs stdetr and torch only."""
