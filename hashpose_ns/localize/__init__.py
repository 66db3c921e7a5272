"""hashpose-localize: where photographs were taken, in a trained run. From Python: `hashpose_ns.localize.api`."""
