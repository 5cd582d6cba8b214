"""Who may say what to whom. One module a component; read this package first."""
