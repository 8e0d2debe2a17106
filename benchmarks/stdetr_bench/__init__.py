"""The suites ``model`` and ``loader`` of ``stdetr bench``; the suite ``op`` is part of ``stdetr_ops``."""
