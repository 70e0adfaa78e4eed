"""The shop in Django's admin."""

from django.contrib import admin

from example.shop.models import Customer, Order, OrderLine, Policy, Product, Refund


class OrderLineInline(admin.TabularInline):
    """The products of an order."""

    model = OrderLine
    extra = 0
    autocomplete_fields = ("product",)


class RefundInline(admin.TabularInline):
    """What was paid back of an order."""

    model = Refund
    extra = 0


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders with their lines and refunds."""

    list_display = ("number", "customer", "status", "ordered_at", "delivered_at")
    list_filter = ("status",)
    list_select_related = ("customer",)
    search_fields = ("number", "customer__name", "customer__email")
    autocomplete_fields = ("customer",)
    date_hierarchy = "ordered_at"
    inlines = (OrderLineInline, RefundInline)


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Products."""

    list_display = ("name", "sku", "kind", "price", "stock")
    list_filter = ("kind",)
    search_fields = ("name", "sku")


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    """Customers."""

    list_display = ("name", "email")
    search_fields = ("name", "email")


@admin.register(Policy)
class PolicyAdmin(admin.ModelAdmin):
    """Policies."""

    list_display = ("topic",)
    search_fields = ("topic", "text")
