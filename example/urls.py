"""The example's addresses: the help desk, reports, the app, login and the admin."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpResponse
from django.urls import include, path

from example.reports.views import report, reports, sample_file
from example.shop.views import conversation, desk

urlpatterns = [
    path("", desk, name="desk"),
    path("conversations/<slug:session_key>/", conversation, name="conversation"),
    path("reports/", reports, name="reports"),
    path("reports/<int:pk>/", report, name="report"),
    path("reports/sample.csv", sample_file, name="sample-file"),
    path("agents/", include("agentic_django.urls")),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    path("favicon.ico", lambda request: HttpResponse(status=204)),
]
