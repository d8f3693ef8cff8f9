"""What happens around every request, in the order that `chain` declares."""
