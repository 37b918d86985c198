"""Views: what models and detectors read of a subject, one file each, with its form in an exported graph."""

from epizoo.maps.view import Graph, View, create_view

__all__ = ["Graph", "View", "create_view"]
