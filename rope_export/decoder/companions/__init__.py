"""What lies beside a decoder's model, so that other people's clients load the folder as it is."""

from rope_export.decoder.companions.beside import Companions, companions

__all__ = ["Companions", "companions"]
