class GDPOTrainer:
    pass
