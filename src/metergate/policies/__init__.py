"""Content policies, named after how they are asked."""
