"""The only code of ckreg that imports torch. Imported inside functions only, so that listing,
planning without a net and plain pulls never pay for it.

    saving     observe (wrappers, views) -> writing (plain, rng), hardware; ranks: one save by many
    loading    observe -> building -> applying (checks, metadata, resuming, snapshots)
    pulling    building -> exporting
"""
