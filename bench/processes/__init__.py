"""What is measured and what measures, each a process of its own: started here, told what to do over pipes."""
