"""What is booked for rated usage, invoices, credits and fees, and by two people."""
