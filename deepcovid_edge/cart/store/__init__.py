"""What the roles of the cart share: one SQLite ledger and one spool folder."""
