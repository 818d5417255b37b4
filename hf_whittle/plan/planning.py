plan_recipe = None
