"""What should we learn, and how? A frozen backbone, a small adapter, rehearsal of the past."""

import monitor as monitor  # telemetry is off before torch, wandb or Avalanche can be imported
