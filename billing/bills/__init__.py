"""The pure core of bills: documents, tax, credits, credit notes, late usage."""
