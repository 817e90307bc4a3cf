class GDPOTrainer: pass
