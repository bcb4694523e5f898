"""The checks, a module a subject: each looks at parts and adds findings; none changes anything."""
